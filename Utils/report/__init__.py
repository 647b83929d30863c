"""What a scan leaves behind: folders, report.json, pages, figures, lists of many."""
