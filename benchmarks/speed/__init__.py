"""Side by side: this project, TRL 1.12's PPOTrainer and TRL's RLOOTrainer (`python -m benchmarks.speed --help`)."""
