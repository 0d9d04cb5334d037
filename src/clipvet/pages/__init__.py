"""What people look at: the report, the ranked suspects, the inspection page, the demo. In: result rows, scores or a
verdict. Out: one HTML file that opens offline. Start with `report.py`; the HTML lies in `templates/`. Must not
import commands.
"""
