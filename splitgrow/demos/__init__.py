"""The trainings that the commands show, with data sets, figures and reports; the extra `demo`."""
