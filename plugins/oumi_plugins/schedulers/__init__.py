"""Family schedulers: learning rate schedules."""
