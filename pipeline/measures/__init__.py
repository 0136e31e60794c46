"""How alike two masks are, and how sure a number is: functions of arrays, no files."""
