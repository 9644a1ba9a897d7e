"""Family trainers: training methods and the loop that they share."""
