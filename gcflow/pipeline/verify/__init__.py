"""`gcflow verify`: whether every file is what those who know it say it is."""
