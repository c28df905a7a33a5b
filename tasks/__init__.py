"""What a job is: requests, limits, engines. Knows nothing of credits, queues or databases."""
