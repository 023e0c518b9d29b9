"""Data that lies afar: fetched, checked, and kept within bounds."""
