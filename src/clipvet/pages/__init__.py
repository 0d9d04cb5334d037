"""What people look at: the report, the ranked suspects, the inspection page, the demo. In: result rows, scores or a
verdict. Out: one HTML file that opens offline. Start with `report.py`; the HTML is in `templates/`, and what all pages
share is `_page.py` and `templates/page.html.jinja`. Must not import commands.
"""
