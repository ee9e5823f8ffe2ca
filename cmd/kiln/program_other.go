//go:build !linux

package main

// dropProgram does nothing: the system finds by itself what of a program is not used.
func dropProgram() {}
