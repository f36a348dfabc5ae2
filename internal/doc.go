// Package internal holds the members of the project; it has no code of its own,
// only the tests that keep its structure (arch_test.go).
package internal
