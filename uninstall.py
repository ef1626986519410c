"""pyinfra inventory uninstall.py: remove every trace of llamafleet from each host.

Results that were fetched to results/ on this controller stay.
"""

from operations.run import begin
from operations.uninstall import uninstall

begin(report=False)
uninstall(name="Remove llamafleet")
