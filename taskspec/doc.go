// Package taskspec implements the task language: it turns the bytes of a task file into a rendered,
// validated [Task] with a step graph, or into errors that point at the line the author wrote.
//
// It is pure. Time, values, secrets and alias files are arguments; it reads no clock, file, network
// or environment, starts nothing, and gives the same result for the same arguments. Its functions may
// be called concurrently.
//
// A document passes these stages, each of which keeps track of where its text came from:
//
//  1. comment lines are dropped;
//  2. with version v1.1.0, the alias block is cut out and aliases are replaced;
//  3. the text is executed as a Go template, twice when it declares secrets;
//  4. the result is parsed as YAML, decoded and checked;
//  5. build and cmd strings are split into words the way a POSIX shell would, and understood.
//
// No shell is ever involved, so what only a shell can do (pipes, redirections, command substitution)
// is refused outside quotes, with a message that says how to write it. Everything is bounded: the
// document, its rendered text, YAML aliases, the work of a template and the number of steps.
package taskspec
