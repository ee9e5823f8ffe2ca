package taskspec

import (
	"net/url"
	"regexp"
	"strings"
	"unicode"

	"gopkg.in/yaml.v3"
)

// declaredSecrets decodes only the secrets of a document.
func (p *parser) declaredSecrets() (list []Secret, nodes []*yaml.Node) {
	root := p.parseYAML()
	if root == nil {
		return nil, nil
	}
	for _, f := range p.fields(place{}, "", root) {
		if f.name == "secrets" {
			list, nodes = p.secretList(f.value)
		}
	}
	return list, nodes
}

// secretList decodes and checks the secrets property. It returns the secrets and where each stands.
func (p *parser) secretList(n *yaml.Node) (list []Secret, nodes []*yaml.Node) {
	seen := map[string]bool{}
	items := p.items(place{}, "secrets", n)
	if len(items) > maxSecrets {
		p.errorf(place{node: items[maxSecrets]}, "secrets", "a task has at most %d secrets, this one has %d", maxSecrets, len(items))
		return nil, nil
	}
	for _, item := range items {
		s, ok := p.secret(item)
		if !ok {
			continue
		}
		if seen[s.ID] {
			p.errorf(place{node: item}, "secrets", "secret id %q is used twice", p.clip(s.ID))
			continue
		}
		seen[s.ID] = true
		list, nodes = append(list, s), append(nodes, item)
	}
	return list, nodes
}

var uuid = regexp.MustCompile(`^[0-9a-fA-F]{8}-([0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}$`)

func (p *parser) secret(n *yaml.Node) (Secret, bool) {
	var s Secret
	before := len(p.errs) + p.dropped
	secretTable.decode(p, &s, place{}, n)
	at := place{node: n}
	switch {
	case len(p.errs)+p.dropped > before:
	case s.ID == "":
		p.errorf(at, "secrets", "a secret needs an id")
	case strings.ContainsFunc(s.ID, unicode.IsSpace):
		p.errorf(at, "secrets", "secret id %q cannot contain spaces", p.clip(s.ID))
	case s.KeyVault == "":
		p.errorf(at, "secrets", "secret %q has no keyvault; write keyvault: https://VAULT/secrets/NAME", p.clip(s.ID))
	case !isSecretURL(s.KeyVault):
		p.errorf(at, "secrets", "secret %q: keyvault %q is not of the form https://VAULT/secrets/NAME or https://VAULT/secrets/NAME/VERSION", p.clip(s.ID), p.clip(s.KeyVault))
	case s.ClientID != "" && !uuid.MatchString(s.ClientID):
		p.errorf(at, "secrets", "secret %q: clientID %q is not a UUID", p.clip(s.ID), p.clip(s.ClientID))
	default:
		return s, true
	}
	return s, false
}

func isSecretURL(s string) bool {
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "https" || u.Host == "" {
		return false
	}
	parts := strings.Split(u.Path, "/")
	return (len(parts) == 3 || len(parts) == 4) && parts[1] == "secrets" && parts[2] != ""
}

// resolveSecrets asks for the value of each secret that decl's document declares.
func (p *parser) resolveSecrets(decl *parser) {
	declared, nodes := decl.declaredSecrets()
	if decl.failed() {
		p.errs = append(p.errs, decl.errs...)
		return
	}
	p.secrets = make(map[string]string, len(declared))
	for i, s := range declared {
		at := place{node: nodes[i]}
		if p.opt.Secrets == nil {
			decl.errorf(at, "secrets", "secret %q cannot be resolved: no secret provider is configured", p.clip(s.ID))
			continue
		}
		v, err := p.opt.Secrets(s)
		if err != nil {
			decl.errorf(at, "secrets", "secret %q: %v", p.clip(s.ID), err)
			continue
		}
		p.secrets[s.ID] = v
	}
	p.hidden = nil
	p.errs = append(p.errs, decl.errs...)
}
