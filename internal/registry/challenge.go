package registry

import "strings"

// parseChallenges reads WWW-Authenticate headers (RFC 9110, 11.6.1), and gives the challenge that this package can meet: "bearer", or
// else "basic"; "" if there is none.
func parseChallenges(headers []string) (scheme string, params map[string]string) {
	for _, h := range headers {
		for h != "" {
			var s string
			var p map[string]string
			s, p, h = nextChallenge(h)
			if s == "bearer" || s == "basic" && scheme == "" {
				scheme, params = s, p
			}
		}
	}
	return scheme, params
}

// nextChallenge cuts off the first challenge of a header: a scheme, and key=value or key="value" behind it with commas between.
func nextChallenge(h string) (scheme string, params map[string]string, rest string) {
	h = strings.TrimLeft(h, " \t,")
	i := strings.IndexAny(h, " \t,")
	if i < 0 {
		return strings.ToLower(h), nil, ""
	}
	scheme, h = strings.ToLower(h[:i]), h[i:]
	params = map[string]string{}
	for {
		h = strings.TrimLeft(h, " \t,")
		i := strings.IndexAny(h, "= \t,")
		if i <= 0 || h[i] != '=' { // the end, or the next scheme
			return scheme, params, h
		}
		key := strings.ToLower(h[:i])
		params[key], h = value(h[i+1:])
	}
}

// value cuts off a token or a quoted string.
func value(h string) (v, rest string) {
	if !strings.HasPrefix(h, `"`) {
		if i := strings.IndexAny(h, " \t,"); i >= 0 {
			return h[:i], h[i:]
		}
		return h, ""
	}
	var b strings.Builder
	for i := 1; i < len(h); i++ {
		switch h[i] {
		case '"':
			return b.String(), h[i+1:]
		case '\\':
			if i++; i < len(h) {
				b.WriteByte(h[i])
			}
		default:
			b.WriteByte(h[i])
		}
	}
	return b.String(), ""
}
