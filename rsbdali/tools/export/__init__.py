"""`rsbdali export`: a trained model as files of other tools."""
