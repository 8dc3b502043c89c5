"""Records become pages people read: one HTML file, or Markdown."""
