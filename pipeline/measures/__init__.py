"""Agreement of masks, quality of rankings and uncertainty of means: functions of arrays, without files."""
