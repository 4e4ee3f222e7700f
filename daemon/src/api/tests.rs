//! The API over a real unix socket, with scripted handles.
