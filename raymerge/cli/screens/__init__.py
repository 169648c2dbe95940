"""What people see, as pure functions: values in, something rich can print out."""
