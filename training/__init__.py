"""What a training is told, what it minimises, how weights move, what it leaves behind."""
