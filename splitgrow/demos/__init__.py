"""What the commands show: trainings, data sets, figures and reports, for the extra `demo`."""
