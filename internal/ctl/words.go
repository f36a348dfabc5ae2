package ctl

import (
	"fmt"
	"regexp"
)

// A word of a command line inside the tool: "a Go string literal", 'verbatim in single
// quotes', or plain text up to white space.
var word = regexp.MustCompile(`"(?:[^"\\]|\\.)*"|'[^']*'|[^'"\s]\S*[^'"\s]?`)

// splitWords splits a line of txn or of an interactive watch.
func splitWords(line string) ([]string, error) {
	words := word.FindAllString(line, -1)
	for i, w := range words {
		switch w[0] {
		case '\'':
			words[i] = w[1 : len(w)-1]
		case '"':
			if _, err := fmt.Sscanf(w, "%q", &words[i]); err != nil {
				return nil, fail(exitInvalidInput, err)
			}
		}
	}
	return words, nil
}
