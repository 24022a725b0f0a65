"""Pictures as files: finds them, and reads their headers, labels and pixels; makes thumbnails."""
