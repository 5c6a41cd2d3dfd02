"""What tests share: modules to import as `helpers.…`, and scripts that tests start in processes of their own."""
