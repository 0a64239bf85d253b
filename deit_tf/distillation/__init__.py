"""Student and teacher: the step that joins them, and a teacher's labels made ahead."""
