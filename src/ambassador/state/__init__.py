"""What workers and replicas share: stores, what they can be asked, and a worker's way to them."""
