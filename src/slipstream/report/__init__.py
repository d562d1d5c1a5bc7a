"""What runs leave behind: records with machine, versions and commit; tables; a self-contained comparison page."""
