"""What a study says and keeps, on records made by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from lstm_monitor.report.ablation.records import Correlation
from lstm_monitor.report.ablation.tables import study_markdown, study_scalars, study_table
from lstm_monitor.report.ablation.verdict import by_construction, random_band, trust_sentence, verdict, with_ends
from lstm_monitor.report.ablation.words import WIDTH, study_lines
from tests.helpers.studies import NAN, QUIET, correlation, doubles, layer, study, trial

EFFECTS = (0.5, 0.2, 0.01, 0.0002)
"""The effects on the output of the layer made by hand."""
SCORES = (0.9, 0.3, 0.02, -0.01)


# --- which cells stay


def test_as_many_cells_go_as_the_curve_allows():
    found = study(layer(trial(least=[1, 0.9, 0.8, 0.6, 0])))  # the loss is worse by 0, 0.2, 0.4, 0.8, 2
    kept = [found.keep(loss)["rnn.l0"] for loss in (0, 0.1, 0.21, 0.41, 0.81)]
    assert kept == [[0, 1, 2, 3], [0, 1, 2, 3], [0, 1, 2], [0, 1], [0]]


def test_one_cell_stays_whatever_is_allowed():
    assert study(layer(trial())).keep(1e9) == {"rnn.l0": [0]}


def test_only_the_first_run_within_counts():
    found = study(layer(trial(least=[1, 0.95, 0.5, 0.99, 0])))  # dips at two cells and recovers
    assert found.keep(0.11) == {"rnn.l0": [0, 1, 2]}


def test_nothing_goes_if_already_one_cell_is_too_much():
    assert study(layer(trial(least=[1, 0.5, 1, 1, 0]))).keep(0.1) == {"rnn.l0": [0, 1, 2, 3]}


def test_curves_at_some_counts_only():
    some = layer(trial(least=[1, 0.9, 0]), counts=torch.tensor([0, 2, 4]))
    assert study(some).keep(0.3) == {"rnn.l0": [0, 1]}
    assert study(replace(some, counts=torch.tensor([2, 3, 4]))).keep(0) == {"rnn.l0": [0, 1]}


def test_where_higher_is_better():
    accuracy = layer(trial(least=[1, 0.9, 0.8, 0.6, 0]), intact=0.9, emptied=0.5)  # worse by 0, 0.04, 0.08, 0.16
    found = study(accuracy, score="accuracy", better="higher", intact=0.9)
    assert found.keep(0.05) == {"rnn.l0": [0, 1, 2]}
    assert found.keep(0.09) == {"rnn.l0": [0, 1]}


@pytest.mark.parametrize(("better", "emptied"), [("lower", 0.5), ("higher", 1.5)])
def test_a_layer_whose_removal_improves_the_score(better, emptied):
    helps = layer(trial(least=[1, 0.9, 1.1, 0.5, 0]), emptied=emptied)  # better, worse, better
    assert study(helps, better=better).keep(0) == {"rnn.l0": [0, 1, 2]}
    assert study(helps, better=better).keep(0.06) == {"rnn.l0": [0]}


def test_without_a_score_the_output_is_what_may_change():
    silent = layer(trial(least=[1, 0.9, 0.8, 0.6, 0]), judged="output", intact=0.0, emptied=0.1)
    assert study(silent, score=None, better="higher").keep(0.011) == {"rnn.l0": [0, 1, 2]}


def test_undefined_curves_remove_nothing():
    nothing = layer(trial(least=[NAN] * 5, most=[NAN] * 5), emptied=1.0)
    assert study(nothing).keep(1) == {"rnn.l0": [0, 1, 2, 3]}
    assert study(layer(trial(least=[1, 0.99, NAN, 0.99, 0]))).keep(0.1) == {"rnn.l0": [0, 1, 2]}


def test_layers_share_what_is_allowed():
    one = layer(trial(least=[1, 0.9, 0.8, 0.6, 0]))
    other = replace(one, key=replace(one.key, index=1))
    assert study(one, other).keep(0.41) == {"rnn.l0": [0, 1, 2], "rnn.l1": [0, 1, 2]}


def test_the_best_curve_is_used_or_the_one_asked_for():
    poor = trial("poor", scores=[1, 2, 3, 4], least=[1, 0.5, 0.4, 0.2, 0])
    found = study(layer(poor, trial(least=[1, 0.9, 0.8, 0.6, 0])))
    assert found["rnn.l0"].best.ranking.name == "output_sensitivity"
    assert found.keep(0.5) == {"rnn.l0": [0, 1]}
    assert found.keep(1.25, by="poor") == {"rnn.l0": [2, 3]}


def test_what_cannot_be_kept():
    found = study(layer(trial()))
    for wrong in (-1, NAN):
        with pytest.raises(ValueError, match="max_loss=.* must be 0 or more"):
            found.keep(wrong)
    with pytest.raises(ValueError, match="by='output_sensitivty' was not on trial. Did you mean 'output_sensitivity'"):
        found.keep(0.1, by="output_sensitivty")
    with pytest.raises(ValueError, match="no ranking was on trial in rnn.l0"):
        study(layer()).keep(0.1)
    with pytest.raises(KeyError, match="no layer 'rnn.l1'. Did you mean 'rnn.l0'"):
        found["rnn.l1"]


# --- what can be trusted


@pytest.mark.parametrize(
    ("rho", "expected"),
    [
        (Correlation(0.95, 0.9, 0.97), "trusted"),
        (Correlation(0.78, 0.6, 0.9), "fair"),
        (Correlation(0.3, 0.1, 0.5), "weak"),
        (Correlation(0.12, -0.1, 0.3), "chance"),
        (Correlation(-0.5, -0.7, -0.2), "backwards"),
        (Correlation(NAN, NAN, NAN), "unknown"),
    ],
)
def test_verdicts(rho, expected):
    assert verdict(layer(), trial(rho=rho)) == expected


def test_curves_like_those_of_random_orders_are_not_trusted():
    flat = trial(rho=correlation(0.95), auc_least=0.6, auc_most=0.5)
    good = trial("good", rho=correlation(0.9))
    assert verdict(layer(flat, good), flat) == "weak"
    assert trust_sentence(layer(flat, good)) == (
        "rnn.l0: trust 'good' (rho 0.90 [0.85, 0.95] with the effect of removing a cell); 'output_sensitivity' (rho "
        "0.95 [0.90, 1.00]; its curves are no better than random orders) is a weak guide."
    )


def test_the_sentence_says_what_to_trust_and_what_not():
    found = layer(
        trial("std_x_outgoing", rho=Correlation(0.12, -0.1, 0.3)),
        trial("a", rho=Correlation(0.78, 0.65, 0.87)),
        trial("b", rho=Correlation(0.6, 0.5, 0.7)),
        trial("c"),
    )
    assert trust_sentence(found) == (
        "rnn.l0: no ranking can be fully trusted; 'a' (rho 0.78 [0.65, 0.87] with the effect of removing a cell) and "
        "'b' (rho 0.60 [0.50, 0.70]) are fair guides; 'std_x_outgoing' (rho 0.12 [-0.10, 0.30]) is no better than "
        "chance here; 'c' could not be judged."
    )


def test_no_ranking_beats_random_orders():
    flat = trial(rho=correlation(0.3), auc_least=0.55, auc_most=0.5)
    assert trust_sentence(layer(flat)).endswith(
        "is a weak guide. No ranking's order of removal beats random ones (best AUC gap 0.05; two random orders lie up "
        "to 0.14 apart)."
    )


def test_noise_comes_first():
    noisy = layer(trial(rho=correlation(0.9)), noise=replace(QUIET, halves_output=0.21))
    assert trust_sentence(noisy) == (
        "rnn.l0: the effects are mostly noise on these sequences (two halves of them agree at rho 0.21): take more. No "
        "ranking can be judged."
    )


def test_noise_of_the_score_alone():
    noisy = layer(trial(rho=correlation(0.9)), noise=replace(QUIET, halves_score=0.21, repeat=-0.004))
    text = " ".join(line.strip() for line in study_lines(study(noisy)))
    assert "effects on val_loss are mostly noise (two halves of the sequences agree at rho 0.21); those on the" in text
    assert "val_loss differs by 0.004 when the same network is evaluated again" in text
    assert "noise" not in " ".join(study_lines(study(layer(trial(rho=correlation(0.9))))))


def test_unknown_noise_is_not_called_noise():
    unknown = layer(
        trial(rho=correlation(0.9)), noise=replace(QUIET, halves_output=NAN, halves_score=NAN, order_gap=NAN)
    )
    assert trust_sentence(unknown).startswith("rnn.l0: trust 'output_sensitivity'")


def test_the_effects_themselves_as_a_ranking():
    found = layer(trial("measured", scores=EFFECTS, rho=Correlation(1, 1, 1)))
    assert by_construction(found.trials[0], found.effects.output)
    assert trust_sentence(found) == (
        "rnn.l0: trust 'measured' (these very effects: rho is 1 by construction; two halves of the sequences agree at "
        "rho 0.93)."
    )
    assert "| measured | by construction (halves: 0.93) | - |" in study_markdown(study(found))
    single = replace(found.trials[0].ranking, scores=torch.tensor(EFFECTS))  # float32
    assert by_construction(replace(found.trials[0], ranking=single), found.effects.output)


def test_the_effects_themselves_are_worth_what_their_halves_are():
    own = trial("measured", scores=EFFECTS, rho=Correlation(1, 1, 1))
    found = layer(own, noise=replace(QUIET, halves_output=0.6))
    assert verdict(found, own) == "fair"
    assert dict(study_scalars(found))["rho_output", "used"] == 0.6
    by_score = trial("measured", scores=SCORES, score=Correlation(1, 1, 1))
    assert dict(study_scalars(layer(by_score)))["rho_score", "used"] == QUIET.halves_score


def test_measured_on_other_sequences_stands_on_its_own():
    found = layer(trial("measured", scores=(0.52, 0.19, 0.011, 0.0003), rho=Correlation(1, 0.97, 1)))
    assert not by_construction(found.trials[0], found.effects.output)
    assert "trust 'measured' (rho 1.00 [0.97, 1.00] with" in trust_sentence(found)
    assert "by construction" not in study_markdown(study(found))


def test_the_effects_on_the_score_as_a_ranking():
    found = layer(trial("by_score", scores=SCORES, rho=correlation(0.9), score=Correlation(1, 1, 1)))
    assert "| by\\_score | 0.90 [0.85, 0.95] | by construction (halves: 0.80) |" in study_markdown(study(found))


def test_unmeasured_effects_are_no_ranking():
    nothing = replace(layer().effects, output=doubles([NAN] * 4))
    assert not by_construction(trial(scores=[NAN] * 4), nothing.output)


def test_few_cells_and_no_rankings():
    assert trust_sentence(layer()) == "rnn.l0: no ranking was on trial."
    effects = layer().effects
    two = {name: getattr(effects, name)[:2] for name in vars(effects)}
    small = layer(trial(scores=[2, 1]), effects=replace(effects, **two))
    assert trust_sentence(small) == "rnn.l0: too few cells to judge a ranking."


# --- curves


def test_curves_get_their_ends():
    some = layer(counts=torch.tensor([1, 3]))
    shares, kept = with_ends(some, doubles([[0.9, 0.5], [NAN, NAN]]))
    assert shares.tolist() == [0, 0.25, 0.75, 1]
    assert kept[0].tolist() == [1, 0.9, 0.5, 0]
    assert kept[1].isnan().all()
    whole = with_ends(layer(), layer().random)
    assert torch.equal(whole[1], layer().random)


def test_the_band_of_random_orders():
    low, middle, high = random_band(layer())
    assert middle.tolist() == pytest.approx([1, 0.8, 0.5, 0.2, 0])
    assert low.tolist() == pytest.approx(np.quantile(layer().random.numpy(), 0.025, axis=0).tolist())
    assert high.tolist() == pytest.approx(np.quantile(layer().random.numpy(), 0.975, axis=0).tolist())
    assert random_band(layer(random=torch.zeros(0, 5))).isnan().all()


# --- lines, tables, scalars and the card


def test_the_summary():
    found = study(layer(trial(rho=correlation(0.9))), notes=("rnn.l1 was left out",))
    assert repr(found).splitlines() == [
        "ablation of 1 layer, cells set to zero, on 256 sequences in 3.2 s",
        "val_loss: 1 with all cells, lower is better",
        "rnn.l0: trust 'output_sensitivity' (rho 0.90 [0.85, 0.95] with the effect of removing a cell).",
        "  val_loss without the layer: 3",
        "  the most harmful cells to remove: 0 (val_loss worse by 0.9 \u00b1 0.1), 1 (0.3 \u00b1 0.05), 2 (0.02 "
        "\u00b1 0.01)",
        "  cells whose removal changes the output by less than 0.001 of its variance: 1 of 4",
        "  effects of single cells: 3 exact, 1 estimated from a part of the sequences",
        "note: rnn.l1 was left out",
    ]


def test_cells_whose_removal_improves_the_score_are_not_called_harmful():
    effects = replace(layer().effects, score=doubles([-0.1, NAN, 0, -0.2]))
    assert "the most harmful cells to remove: none of the 3 measured ones" in repr(study(layer(effects=effects)))


def test_the_summary_without_a_score():
    effects = replace(layer().effects, score=doubles([NAN] * 4), score_error=doubles([NAN] * 4))
    plain = layer(trial(), judged="output", intact=0.0, emptied=0.7, effects=effects)
    found = study(plain, score=None, intact=NAN, mode="mean", sequences=1, seconds=125)
    text = repr(found)
    assert text.startswith("ablation of 1 layer, cells set to mean, on 1 sequence in 2 min 5 s\nno score was evaluated")
    assert "removing the whole layer changes the output by 0.7 (mean squared)" in text
    assert "most harmful cells to remove: 0 (output changes by 0.5 \u00b1 0.05)" in text
    assert "nan" not in text + found.in_words() + study_markdown(found)
    assert "score" not in found.in_words()
    assert "rho with score" not in study_markdown(found)


def test_what_removal_of_the_layer_does_to_the_score():
    assert "changes nothing: its curves are not defined" in repr(study(layer(trial(), emptied=1.0)))
    assert "better than with it" in repr(study(layer(trial()), better="higher"))
    assert "better than with it" not in repr(study(layer(trial())))


def test_what_was_not_measured():
    effects = replace(layer().effects, output=doubles([0.5, NAN, 0.01, 0.0002]), score=doubles([NAN, NAN, 0.02, NAN]))
    found = study(layer(trial(), effects=effects))
    assert "2 exact, 1 estimated from a part of the sequences, 1 not measured" in repr(found)
    assert "remove: 2 (val_loss worse by 0.02 \u00b1 0.01)\n" in repr(found)
    assert "nan" not in repr(found) + found.in_words() + study_markdown(found)
    empty = replace(effects, output=doubles([NAN] * 4), score=doubles([NAN] * 4))
    assert "most harmful" not in repr(study(layer(trial(), effects=empty)))
    assert found.in_words()


def test_lines_keep_numbers_together_and_are_not_long():
    trials = [trial(f"a_rather_long_name_{k}", rho=correlation(0.9 - 0.1 * k)) for k in range(8)]
    lines = study_lines(study(layer(*trials, path="encoder.rnn")))
    assert max(map(len, lines)) <= WIDTH
    assert not any(line.endswith((",", "rho", "\u00b1")) and "[" in line.rsplit(" ", 1)[-1] for line in lines)


def test_words_are_two_tables():
    found = study(layer(trial(rho=correlation(0.9), score=correlation(0.5))))
    name, titles, row, random, blank, cells, *rows = found.in_words(count=1).splitlines()
    assert name == "rnn.l0:"
    assert len(titles) == len(row) == len(random)
    assert row.split() == [
        "output_sensitivity",
        "0.90",
        "[0.85,",
        "0.95]",
        "0.50",
        "[0.45,",
        "0.55]",
        "0.70",
        "0.30",
        "0.40",
    ]
    assert random.split()[-3:] == ["up", "to", "0.14"]
    assert (blank, cells.split()[0]) == ("", "cell")
    assert [line.split()[0] for line in rows] == ["0", "3"]
    assert rows[1].split()[-1] == "estimated"


def test_columns_of_the_table():
    second = layer(trial("b", scores=[1, 4, 2, 3]), path="out")
    table = study_table(study(layer(trial("a", scores=[1, 3, 2, 4])), second))
    assert list(table) == [
        "layer", "cell", "output_effect", "output_error", "score_effect", "score_error", "exact", "rank:a", "rank:b"
    ]  # fmt: skip
    assert table["layer"].tolist() == ["rnn.l0"] * 4 + ["out.l0"] * 4
    assert table["rank:a"][:4].tolist() == [3, 1, 2, 0]
    assert np.isnan(table["rank:a"][4:]).all()
    assert table["rank:b"][4:].tolist() == [3, 0, 2, 1]
    assert table["output_effect"][:4].tolist() == list(EFFECTS)
    assert table["exact"].dtype == bool


def test_the_table_in_pandas():
    frame = study(layer(trial("a", scores=[1, 3, 2, 4]))).to_pandas()
    assert frame.shape == (4, 8)
    assert frame["rank:a"].tolist() == [3, 1, 2, 0]
    assert frame.loc[3, "score_effect"] == -0.01


def test_scalars_are_those_of_the_first_ranking():
    first = trial("a", rho=correlation(0.7), score=correlation(0.4))
    found = dict(study_scalars(layer(first, trial("b", rho=correlation(0.1)))))
    expected = {("rho_output", "used"): 0.7, ("rho_score", "used"): 0.4, ("harmless", "share"): 0.25}
    assert found == expected | {("gap", "used"): pytest.approx(0.4)}
    assert dict(study_scalars(layer())) == {("harmless", "share"): 0.25}
    unknown = replace(layer().effects, output=doubles([0.5, NAN, NAN, 0.0002]))
    assert dict(study_scalars(layer(effects=unknown)))["harmless", "share"] == 0.5


def test_the_card():
    first = trial("std_x_outgoing", rho=correlation(0.9), score=correlation(0.5))
    card = study_markdown(study(layer(trial("weaker", auc_least=0.5), first), notes=("a <b> | note",)))
    rows = [line for line in card.splitlines() if line.startswith("|")]
    assert [row.count(" |") for row in rows if "---" not in row] == [6] * 4
    assert rows[2] == "| std\\_x\\_outgoing | 0.90 [0.85, 0.95] | 0.50 [0.45, 0.55] | 0.70 | 0.30 | 0.40 |"
    assert rows[3].startswith("| weaker | - | - | 0.50 |")
    assert rows[4] == "| random orders | - | - | 0.50 [0.50, 0.50] | 0.50 [0.50, 0.50] | up to 0.14 |"
    assert "**trust 'std\\_x\\_outgoing' (rho 0.90" in card
    assert "- the cells without effect: 3\n" in card
    assert "- a &lt;b&gt; \\| note" in card
    assert "zero: each removed cell gives 0" in card


def test_the_card_reads_as_a_table_in_tensorboard():
    import markdown  # TensorBoard's own reader

    page = markdown.markdown(study_markdown(study(layer(trial("a_b", rho=correlation(0.9))))), extensions=["tables"])
    assert page.count("<table>") == 1
    assert "<td>a_b</td>" in page
    assert "<em>" not in page


def test_long_lists_of_harmless_cells_are_cut():
    size = 30
    same = {name: torch.zeros(size, dtype=torch.float64) for name in ("output", "output_error", "score", "score_error")}
    many = layer(effects=replace(layer().effects, **same, exact=torch.ones(size, dtype=torch.bool)))
    assert "17, 18, 19 and 10 more" in study_markdown(study(many))


def test_a_page_for_notebooks():
    page = study(layer(trial("<b>")))._repr_html_()
    assert "&lt;b&gt;" in page
    assert "<b>" not in page
    assert '<img alt="performance kept' in page
