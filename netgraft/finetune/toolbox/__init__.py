"""What methods are made of: adapters, adversaries, domains, discrepancies, losses."""
