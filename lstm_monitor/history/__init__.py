"""Store, load and compare the histories of trainings, in files that nothing can lose."""
