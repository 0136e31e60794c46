"""Agreement of masks, quality of rankings, uncertainty of means, and numbers as text: functions without files."""
