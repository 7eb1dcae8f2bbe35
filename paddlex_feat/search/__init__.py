"""Search: galleries of images that answer with the nearest ones. `gallery.Gallery` is the public class."""
