"""The addresses of the API, a file a resource. A route is a caption: parse, call one function, answer."""
