"""The paper's tables and figures: the runs they need, making these, and a report that tests the paper's statements."""
