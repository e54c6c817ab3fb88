"""The engine that performs a method's updates. A method never imports it."""
