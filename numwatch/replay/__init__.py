"""A run's recorded history under a recipe that it did not use."""
