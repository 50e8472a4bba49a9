#!/bin/sh
# The page: what each of the three VMs says of itself, asked anew each time.
printf 'Content-Type: text/html\r\n\r\n'
cat <<END
<!doctype html>
<meta http-equiv="refresh" content="2">
<title>mikrom reconcile</title>
<style>body { font: 1.5em sans-serif; margin: 3em } li { margin: .5em }</style>
<h1>Three microVMs</h1>
<p>This page is from $(hostname).</p>
<ul>
END
for peer in $PEERS; do
    said=$(timeout 3 wget -q -O - "http://$peer/me" 2>/dev/null)
    echo "<li>${said:-$peer does not answer}</li>"
done
echo '</ul>'
