"""Object stores behind one small interface: s3:// and file://."""
