"""Resources: settings, base model, accelerator. Cheap to make; nothing is loaded before an asset asks for it."""
