"""What a run tells people: metrics of rollouts and evaluations, costs, and files of trajectories."""
