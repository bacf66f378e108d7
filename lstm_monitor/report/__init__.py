"""What people see of one check or one ablation study: numbers by key, tables, pictures, alarms, drift."""
