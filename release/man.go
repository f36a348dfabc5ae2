package main

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"quorate/internal/build"
	"quorate/internal/config"
	"quorate/internal/ctl"
	"quorate/internal/utl"
)

// writeManPages generates a page for each program from its help.
func (s *stage) writeManPages() error {
	for name, page := range map[string][]byte{"etcd": s.serverPage(), "etcdctl": s.toolPage(ctl.Command(), "ETCDCTL_"), "etcdutl": s.toolPage(utl.Command(), "")} {
		// The gzip header has no time and no name.
		var z bytes.Buffer
		w, err := gzip.NewWriterLevel(&z, gzip.BestCompression)
		if err != nil {
			return err
		}
		if _, err := w.Write(page); err != nil {
			return err
		}
		if err := w.Close(); err != nil {
			return err
		}
		if err := s.add("man/"+name+".1", page); err != nil {
			return err
		}
		if err := s.add("man/"+name+".1.gz", z.Bytes()); err != nil {
			return err
		}
	}
	return nil
}

// page is a manual page in the language of man(7).
type page struct{ bytes.Buffer }

var escapes = strings.NewReplacer(`\`, `\e`, "-", `\-`, "'", `\(aq`, "`", `\(ga`, "^", `\(ha`, "~", `\(ti`)

// text escapes the characters that are special in the language.
func text(s string) string {
	lines := strings.Split(escapes.Replace(s), "\n")
	for i, l := range lines {
		if strings.HasPrefix(l, ".") {
			lines[i] = `\&` + l
		}
	}
	return strings.Join(lines, "\n")
}

func (s *stage) newPage(name, short string) *page {
	p := &page{}
	fmt.Fprintf(p, ".TH %s 1 \"%s\" \"Quorate %s\" \"etcd %s\"\n", strings.ToUpper(name), s.date.Format("2006\\-01\\-02"), text(s.version), build.EtcdVersion)
	p.section("NAME")
	fmt.Fprintf(p, "%s \\- %s\n", name, text(strings.TrimSuffix(short, ".")))
	return p
}

func (p *page) section(title string)    { fmt.Fprintf(p, ".SH %s\n", strings.ToUpper(text(title))) }
func (p *page) subsection(title string) { fmt.Fprintf(p, ".SS %s\n", text(title)) }
func (p *page) bold(line string)        { fmt.Fprintf(p, ".PP\n\\fB%s\\fR\n", text(line)) }
func (p *page) paragraph(s string)      { fmt.Fprintf(p, ".PP\n%s\n", text(strings.TrimSpace(s))) }
func (p *page) literal(s string)        { fmt.Fprintf(p, ".PP\n.nf\n%s\n.fi\n", text(strings.Trim(s, "\n"))) }
func (p *page) entry(term string, lines ...string) {
	fmt.Fprintf(p, ".TP\n\\fB%s\\fR\n%s\n", text(term), text(strings.Join(lines, "\n.br\n")))
}

func (s *stage) serverPage() []byte {
	p := s.newPage("etcd", "a member of a distributed, strongly consistent key-value store")
	p.section("Synopsis")
	p.literal(strings.TrimPrefix(strings.TrimSpace(config.Usage()), "Usage:"))
	group := ""
	for _, f := range config.Flags() {
		if f.Group != group {
			group = f.Group
			p.section(group)
		}
		fmt.Fprintf(p, ".TP\n\\fB%s\\fR '%s'\n", text("--"+f.Name), text(f.Default))
		for i, line := range f.Text {
			if i > 0 {
				p.WriteString(".br\n")
			}
			p.WriteString(text(line) + "\n")
		}
	}
	p.section("Files")
	p.entry("/etc/default/etcd", "Variables of the service of Debian's packages. Those of RPM packages are in /etc/etcd/etcd.conf.")
	p.entry("/etc/etcd/etcd.conf.yml", "The configuration file, used when ETCD_CONFIG_FILE names it.")
	p.entry(dataDir, "The data of the service.")
	p.section("See also")
	p.paragraph("etcdctl(1), etcdutl(1)")
	return p.Bytes()
}

func (s *stage) toolPage(root *cobra.Command, env string) []byte {
	p := s.newPage(root.Name(), root.Short)
	p.section("Synopsis")
	p.bold(root.Name() + " [flags] command")
	if root.Example != "" {
		p.section("Examples")
		p.literal(root.Example)
	}
	commands := func(title, group string) {
		first := true
		for _, c := range root.Commands() {
			if c.IsAvailableCommand() && c.GroupID == group {
				if first {
					p.section(title)
					first = false
				}
				p.command(c)
			}
		}
	}
	for _, g := range root.Groups() {
		commands(g.Title, g.ID)
	}
	commands("Commands", "")
	p.section("Global flags")
	if env != "" {
		p.paragraph("Every command takes these flags. Each may be given as a variable instead: " + env + "ENDPOINTS for --endpoints, and so on.")
	}
	root.PersistentFlags().VisitAll(p.flag)
	p.section("See also")
	p.paragraph("etcd(1), etcdctl(1), etcdutl(1)")
	return p.Bytes()
}

// command describes c and all commands below it.
func (p *page) command(c *cobra.Command) {
	if c.Runnable() || !c.HasAvailableSubCommands() {
		p.subsection(c.CommandPath())
		p.bold(c.UseLine())
		if c.Long != "" {
			p.literal(c.Long)
		} else {
			p.paragraph(c.Short + ".")
		}
		c.LocalNonPersistentFlags().VisitAll(func(f *pflag.Flag) {
			if !f.Hidden && f.Name != "help" {
				p.flag(f)
			}
		})
		if c.Example != "" {
			p.literal(c.Example)
		}
	}
	for _, sub := range c.Commands() {
		if sub.IsAvailableCommand() {
			p.command(sub)
		}
	}
}

func (p *page) flag(f *pflag.Flag) {
	term := "--" + f.Name
	if f.Shorthand != "" {
		term = "-" + f.Shorthand + ", " + term
	}
	kind, usage := pflag.UnquoteUsage(f)
	if kind != "" {
		term += " " + kind
	}
	switch f.DefValue {
	case "", "false", "[]", "0", "0s":
	default:
		usage += " (default " + f.DefValue + ")"
	}
	p.entry(term, usage)
}
