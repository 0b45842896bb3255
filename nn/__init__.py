"""What a person runs: training, inference, evaluation."""
