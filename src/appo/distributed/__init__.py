"""What several processes tell one another, and how they share a policy, its gradients and its sequences."""
