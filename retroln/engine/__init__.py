"""Networks kept warm behind one predictor; new inference engines go here."""
