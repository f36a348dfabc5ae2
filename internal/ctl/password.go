package ctl

import (
	"fmt"
	"io"
	"os"
	"strings"
)

// askPassword prompts on standard output and reads one line of standard input,
// which a terminal does not show. Blanks around a password do not count.
func (a *app) askPassword(prompt string) (string, error) {
	fmt.Fprint(a.Stdout, prompt)
	if f, ok := a.Stdin.(*os.File); ok {
		defer hideInput(f)()
	}
	line, err := readLine(a.Stdin)
	fmt.Fprintln(a.Stdout)
	if err != nil {
		return "", fmt.Errorf("failed during password entry: %w", err)
	}
	return strings.TrimSpace(line), nil
}

// readLine reads up to a newline or the end, and no byte further: what follows
// may be meant for somebody else.
func readLine(r io.Reader) (string, error) {
	var line []byte
	var b [1]byte
	for {
		n, err := r.Read(b[:])
		if n == 1 {
			if b[0] == '\n' {
				return string(line), nil
			}
			line = append(line, b[0])
		}
		if err == io.EOF {
			return string(line), nil
		}
		if err != nil {
			return "", err
		}
	}
}
