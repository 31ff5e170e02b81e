"""The fleet at one moment: workers, models, queues, and sums over them."""
