package ui

import (
	"encoding/json"
	"fmt"
	"html"
	"image/color"
	"image/png"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/godkms-hermetic/godkms-hermetic/internal/need"
)

// measure is what the tests' copy of a page runs: a report has no script of its own.
const measure = `<script>
addEventListener('load', () => {
	const box = document.querySelector('.scroll'), only = document.getElementById('only');
	box.scrollTop = 300; box.scrollLeft = 150;
	const at = box.getBoundingClientRect(), head = document.querySelector('thead th:nth-child(2)').getBoundingClientRect(),
		side = document.querySelector('tbody tr:nth-child(9) th').getBoundingClientRect();
	const rgb = s => s.match(/[\d.]+/g).map(Number);
	const light = c => rgb(c).slice(0, 3).map(v => (v /= 255) <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
		.reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
	const behind = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor; if (rgb(c)[3] !== 0) return c; } };
	let contrast = 21, worst = '';
	for (const e of document.querySelectorAll('body *')) {
		if (![...e.childNodes].some(n => n.nodeType === 3 && n.data.trim())) continue;
		const a = light(getComputedStyle(e).color), b = light(behind(e)), c = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
		if (c < contrast) [contrast, worst] = [c, e.className + ': ' + e.textContent];
	}
	const rows = () => [...document.querySelectorAll('tbody tr')].filter(r => r.offsetHeight > 0).length;
	const all = rows();
	only.click();
	const m = { inner: innerWidth, page: document.documentElement.scrollWidth, box: box.clientWidth, table: box.scrollWidth, all, bad: rows(),
		background: getComputedStyle(document.body).backgroundColor, top: head.top - at.top, left: side.left - at.left, side: side.width, contrast, worst, title: document.title,
		scripts: document.scripts.length, images: document.images.length, loaded: performance.getEntriesByType('resource').length,
		links: [...document.querySelectorAll('td a')].filter(a => document.querySelector(a.getAttribute('href'))).length };
	parent.document.body.append(Object.assign(parent.document.createElement('pre'), { textContent: JSON.stringify(m) }));
});
</script>`

// A real browser lays the page out, at the width of a desk and of a phone, light and dark.
func TestReportInABrowser(t *testing.T) {
	t.Parallel()
	chromium := need.Program(t, "chromium")
	page := render(t, sample(), "html")
	policy, _, _ := strings.Cut(page[strings.Index(page, `content="default-src`):], ">")
	copied := strings.Replace(page, policy, `content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"`, 1)
	copied = strings.Replace(copied, "</body>", measure+"</body>", 1)
	copied = html.EscapeString(copied)
	for _, c := range []struct {
		name          string
		scheme        int // Blink's: 0 dark, 1 light
		page          color.NRGBA
		width, height int // of the picture
	}{
		{"light", 1, color.NRGBA{0xf6, 0xf6, 0xf3, 0xff}, 1280, 900},
		{"dark", 0, color.NRGBA{0x13, 0x14, 0x17, 0xff}, 390, 844},
	} {
		dir := t.TempDir()
		browse := func(page string, flags ...string) string {
			t.Helper()
			file := filepath.Join(dir, "page.html")
			if err := os.WriteFile(file, []byte(page), 0o644); err != nil {
				t.Fatal(err)
			}
			cmd := exec.CommandContext(t.Context(), chromium, append([]string{"--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
				"--no-first-run", "--disable-extensions", "--disable-background-networking", "--disable-component-update",
				"--host-resolver-rules=MAP * ~NOTFOUND", "--user-data-dir=" + filepath.Join(dir, "profile"),
				fmt.Sprintf("--blink-settings=preferredColorScheme=%d", c.scheme)}, append(flags, "file://"+file)...)...)
			cmd.Env = append(os.Environ(), "HOME="+dir)
			cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
			var errs strings.Builder
			cmd.Stderr = &errs
			out, err := cmd.Output()
			for range 100 { // its helpers outlive it for a moment, and write to the profile
				if syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) != nil {
					break
				}
				time.Sleep(20 * time.Millisecond)
			}
			if err != nil {
				t.Fatalf("chromium: %v\n%s", err, errs.String())
			}
			return string(out)
		}
		// No window of it is as narrow as a phone, but frames are.
		frames := `<!DOCTYPE html><meta name="color-scheme" content="light dark"><body>`
		widths := []int{1280, 390}
		for _, w := range widths {
			frames += fmt.Sprintf(`<iframe width="%d" height="900" frameborder="0" srcdoc="%s"></iframe>`, w, copied)
		}
		dom := browse(frames, "--dump-dom")
		found := regexp.MustCompile(`<pre>(\{[^<]*\})</pre>`).FindAllStringSubmatch(dom, -1)
		if len(found) != len(widths) {
			t.Fatalf("%d of %d pages measured themselves", len(found), len(widths))
		}
		for _, f := range found {
			var m struct {
				Inner, Page, Box, Table, All, Bad, Scripts, Images, Loaded, Links int
				Top, Left, Side, Contrast                                         float64
				Worst, Title, Background                                          string
			}
			if err := json.Unmarshal([]byte(html.UnescapeString(f[1])), &m); err != nil {
				t.Fatal(err)
			}
			errorf := func(format string, a ...any) {
				t.Helper()
				t.Errorf("%s, %d wide: %s", c.name, m.Inner, fmt.Sprintf(format, a...))
			}
			if !slices.Contains(widths, m.Inner) || m.Page != m.Inner {
				errorf("the page is %d wide", m.Page)
			}
			if m.Table <= m.Box && m.Inner < 400 {
				errorf("the table, %d wide, has room in %d: nothing shows that it scrolls", m.Table, m.Box)
			}
			if m.Top < 0 || m.Top > 2 || m.Left < 0 || m.Left > 2 || m.Side > float64(m.Inner)/2 {
				errorf("scrolled, the head is at %.1f, and the kernels are at %.1f and %.1f wide; want them to stay, and room beside them", m.Top, m.Left, m.Side)
			}
			if m.Contrast < 4.5 { // WCAG 2.2, 1.4.3
				errorf("contrast %.2f of %q; want 4.5", m.Contrast, m.Worst)
			}
			if m.All != 25 || m.Bad != 3 || m.Links != 3 {
				errorf("%d rows, %d with a failure, %d links to failures; want 25, 3, 3", m.All, m.Bad, m.Links)
			}
			if m.Title != "3 of 49 builds failed" || m.Scripts != 1 || m.Images != 0 || m.Loaded != 0 {
				errorf("title %q, %d scripts, %d images, %d files loaded; want none but the test's", m.Title, m.Scripts, m.Images, m.Loaded)
			}
			if want := fmt.Sprintf("rgb(%d, %d, %d)", c.page.R, c.page.G, c.page.B); m.Background != want {
				errorf("background %s; want %s", m.Background, want)
			}
		}

		// As it is: its policy must let its style through.
		shot := filepath.Join(dir, "shot.png")
		browse(page, "--screenshot="+shot, fmt.Sprintf("--window-size=%d,%d", c.width, c.height))
		f, err := os.Open(shot)
		if err != nil {
			t.Fatal(err)
		}
		img, err := png.Decode(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		if size := img.Bounds().Size(); size.X != c.width || size.Y != c.height || color.NRGBAModel.Convert(img.At(2, 2)) != c.page {
			t.Errorf("%s: a picture of %v with %v in its corner; want %d by %d, %v", c.name, size, img.At(2, 2), c.width, c.height, c.page)
		}
	}
}
