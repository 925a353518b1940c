"""Fine-tuning: recipes, tuners and what a training run needs."""
