"""How an ablation study is made."""
