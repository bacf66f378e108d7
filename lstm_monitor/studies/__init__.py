"""How an ablation study is made."""

from lstm_monitor.studies.asking import ablation_study as ablation_study
