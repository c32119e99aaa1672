"""Layouts of data sets: how images and labels are found, paired and divided."""
